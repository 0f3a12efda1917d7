// Package annotations reads what people write on Services and Namespaces. Its
// errors name the field and what to do.
package annotations

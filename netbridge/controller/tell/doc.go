// Package tell writes Events of what is wrong with an object, once for each time
// that it becomes so.
package tell

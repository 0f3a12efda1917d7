// Package loop runs a pass over everything whenever something has changed. A pass
// looks at all there is, so that what was missed while it ran is in the next.
package loop

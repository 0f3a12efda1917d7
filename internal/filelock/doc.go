// Package filelock takes locks of files (flock(2)), with a way to give up waiting.
package filelock

// Package report is what preflight checks come to, for people and for programs.
//
// # Contract
//
// A check ends in ok, warn, fail or unknown. fail means that pods would be at risk
// or would not start; warn that something a pod may ask for will not work; unknown
// that it could not be looked at, and then the remedy is a command for whoever may.
// Every result but ok says what will not work and the line that mends it.
package report

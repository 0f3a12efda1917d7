// Package hold is the controller's guard for whatever it takes away: what is
// missing goes at once, unless much of it went at once or the word that it is
// missing is doubtful. Then it must stay missing for a while.
package hold

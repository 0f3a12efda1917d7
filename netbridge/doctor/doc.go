// Package doctor checks one machine for what the pod network needs, before its agent
// runs or beside it.
//
// # Contract
//
// The results are those of package report. Nothing that it does stays: it makes one
// device and removes it at once, and what a token may write it tries by writes that
// cannot succeed.
//
// Looking and judging are apart. What looks returns what was found; what judges is
// pure, and turns what was found into checks. What the machine cannot show is left
// out.
package doctor

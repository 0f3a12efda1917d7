// Package figures is the report of a run of benchmarks: each figure beside what it
// was measured against and the goal it has to meet, as a table for people and a
// JSON file for programs, with the machine and its load before and after.
//
// Where goals are strict, one that is missed, or about which a run says nothing,
// fails the benchmark; otherwise it is only told.
package figures

package figures

import (
	"slices"
	"time"
)

// Quantile of the values by nearest rank: the p95 of 20 is the 19th. It is zero
// where there are none.
func Quantile[T int | float64 | time.Duration](values []T, q float64) T {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	rank := int(q*float64(len(s)) + 0.9999)
	return s[min(max(rank, 1), len(s))-1]
}

// Median of an even number of values is the mean of the middle two. It is zero
// where there are none.
func Median[T int | float64 | time.Duration](values []T) T {
	n := len(values)
	if n == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(n-1)/2] + s[n/2]) / 2
}

package bench

import (
	"fmt"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
)

func ms(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}

func msList(list []time.Duration) []int64 {
	out := make([]int64, len(list))
	for i, d := range list {
		out[i] = d.Milliseconds()
	}
	return out
}

func spread(list []time.Duration) string {
	return fmt.Sprintf("median %s, p95 %s", ms(figures.Median(list)), ms(figures.Quantile(list, 0.95)))
}

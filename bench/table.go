package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// printTable writes the table that a person reads in the terminal.
func printTable(out io.Writer, list []result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	last := ""
	for _, r := range list {
		if r.Missing != "" {
			continue
		}
		if r.Row != last {
			if last != "" {
				fmt.Fprintln(w, "\t\t\t\t\t\t\t\t\t\t")
			}
			fmt.Fprintf(w, "%s\tIOPS\tMB/s\tp50 µs\tp99 µs\tp99.9 µs\tCPU s/Mio\tto raw\tto loop\tto nvmet\t%s\n", r.Row, spreadTitle(r))
			last = r.Row
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.1f\t%.0f\t%.0f\t%.0f\t%.1f\t%s\t%s\t%s\t%s\n", r.Subject, r.IOPS, r.MBps, r.P50, r.P99, r.P999,
			r.ServerCPU, ratio(r.RatioRaw), ratio(r.RatioLoop), ratio(r.RatioNVMeT), spread(r))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range list {
		if r.Missing != "" {
			fmt.Fprintf(out, "%s: %s\n", r.Subject, r.Missing)
		}
	}
	if len(list) > 0 {
		fmt.Fprintf(out, "%s mode; %s; %s\n", list[0].Mode, list[0].machine(), list[0].Go)
	}
	return nil
}

func ratio(v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", v)
}

func spreadTitle(r result) string {
	if r.Rounds > 1 {
		return fmt.Sprintf("IOPS of %d rounds\t", r.Rounds)
	}
	return ""
}

func spread(r result) string {
	if r.Rounds > 1 {
		return fmt.Sprintf("%.0f…%.0f\t", r.IOPSMin, r.IOPSMax)
	}
	return ""
}

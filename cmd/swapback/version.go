package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/version"
)

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "Print the version",
		Long:              `Print the version of this command. The daemon's is shown by swapback doctor.`,
		Example:           `  swapback version --json`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": version.String(), "go": runtime.Version(), "arch": runtime.GOARCH}
			return a.print(v, func(w io.Writer) {
				fmt.Fprintf(w, "swapback %s (%s, %s)\n", v["version"], v["go"], v["arch"])
			})
		},
	}
}

func newOpenAPI(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "openapi",
		Short: "Print the OpenAPI document of the control API",
		Long: `Print the document that describes swapbackd's HTTP and JSON interface as YAML.
The running daemon serves it too, as /openapi.yaml and /openapi.json.`,
		Example: `  swapback openapi > swapback-api.yaml
  curl --unix-socket ` + api.DefaultSocket + ` http://swapbackd/v1/volumes`,
		Args:              args(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			doc, err := api.OpenAPI(version.String())
			if err != nil {
				return fmt.Errorf("OpenAPI document: %w", err)
			}
			_, err = a.out.Write(doc)
			return err
		},
	}
}

// Package nomad holds the Nomad settings that pods need, as files an operator
// copies and as text that the development cluster runs with.
package nomad

import _ "embed"

// The files of this directory.
var (
	//go:embed client.hcl
	Client string
	//go:embed server.hcl
	Server string
	//go:embed policy.hcl
	Policy string
	//go:embed netbridge-agent.hcl
	NetbridgeAgent string
)

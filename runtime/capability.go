package runtime

import "slices"

// Capability is something a module asks for that its configuration has to grant.
type Capability struct {
	Name      string   `json:"name"`  // for example http
	Key       string   `json:"key"`   // in the module's configuration, below allow
	Grant     string   `json:"grant"` // a value that the key may have, as YAML
	What      string   `json:"-"`     // the value is
	Functions []string `json:"functions"`
}

// capabilitiesOf lists what the imports ask for. A function is known by its name, whatever ABI it belongs to.
func capabilitiesOf(imports []Func) []Capability {
	var out []Capability
	for _, c := range []Capability{
		{"http", "http", `["example.com:443"]`, "the hosts that it may ask", []string{"http_request", "request"}},
	} {
		var asked []string
		for _, f := range imports {
			if slices.Contains(c.Functions, f.Name) {
				asked = append(asked, f.Module+"."+f.Name)
			}
		}
		if len(asked) > 0 {
			c.Functions = asked
			out = append(out, c)
		}
	}
	return out
}

// asks reports whether the imports ask for the capability of that name.
func asks(imports []Func, name string) bool {
	return slices.ContainsFunc(capabilitiesOf(imports), func(c Capability) bool { return c.Name == name })
}

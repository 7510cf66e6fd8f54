package config

import (
	"fmt"
	"path"
	"path/filepath"
	"reflect"
	"strings"
)

// routeLimits fills in the limits that a route leaves to its module and refuses those that would be wider, which would do
// nothing.
func (r *report) routeLimits(c *Config, rt *Route, at string) {
	var modules []*Module
	name := fmt.Sprintf("module %q has", rt.Module)
	if strings.ContainsAny(rt.Module, "{}") {
		name = "any module has"
		for _, key := range sortedKeys(c.Modules) {
			modules = append(modules, c.Modules[key])
		}
	} else {
		modules = append(modules, c.Modules[rt.Module])
	}
	own, route := reflect.TypeFor[Limits](), reflect.ValueOf(&rt.Limits).Elem()
	for i := range own.NumField() {
		field := own.Field(i)
		given, key := route.FieldByName(field.Name), at+"."+schemaOf(own).name[i]
		var most reflect.Value
		for _, m := range modules {
			if m == nil {
				continue // reported elsewhere
			}
			if v := reflect.ValueOf(m.Limits).Field(i); !most.IsValid() || wider(v, most, field.Tag) {
				most = v
			}
		}
		switch {
		case !most.IsValid():
		case given.IsNil():
			p := reflect.New(field.Type)
			p.Elem().Set(most)
			given.Set(p)
		case wider(given.Elem(), most, field.Tag) && !r.wrong[key]:
			r.failf(key, "%s is more than %s, %s; a route can only tighten", format(given.Elem()), name, format(most))
		}
	}
}

// wider says whether limit a lets through more than b.
func wider(a, b reflect.Value, tag reflect.StructTag) bool {
	if tag.Get("zero") == "unlimited" && (a.Int() == 0 || b.Int() == 0) {
		return a.Int() == 0 && b.Int() != 0
	}
	return a.Int() > b.Int()
}

// files checks the directories that a module is granted and says where the guest finds each.
func (r *report) files(dirs []*Dir, at string) {
	seen := map[string]bool{}
	for i, d := range dirs {
		at := fmt.Sprintf("%s[%d]", at, i)
		if d == nil || r.wrong[at] {
			continue
		}
		if d.Dir == "" {
			r.failf(at+".dir", "is missing; name a directory")
			continue
		}
		if base := filepath.Base(d.Dir); d.As == "" && filepath.IsLocal(base) && base != "." {
			d.As = "/" + base
		}
		switch {
		case !path.IsAbs(d.As) || path.Clean(d.As) != d.As || strings.ContainsRune(d.As, 0):
			r.failf(at+".as", "%q is no path for a guest; write an absolute one, such as /data", d.As)
		case seen[d.As]:
			r.failf(at+".as", "%q stands for another directory already; give each its own", d.As)
		}
		seen[d.As] = true
	}
}

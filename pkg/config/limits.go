package config

import (
	"fmt"
	"reflect"
	"strings"
)

// routeLimits fills in the limits that a route leaves to its module and refuses those that would be wider, which would do
// nothing.
func (r *report) routeLimits(c *Config, rt *Route, path string) {
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
		given, key := route.FieldByName(field.Name), path+"."+schemaOf(own).name[i]
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

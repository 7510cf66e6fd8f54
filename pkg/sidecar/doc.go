// Package sidecar builds the parts that a configuration names, introduces them to one another, runs them and drains them. It
// knows every part and does no work of its own.
//
// Parts start from the ground up (server, connections, store, modules, routes) and drain from the top down: the routes stop
// taking jobs, finish what runs and settle it; then claims, transport, store and server are closed, in this order.
package sidecar

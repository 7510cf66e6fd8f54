// Package router carries messages along their routes: from a source through the window into the chain, and back to their
// settlement.
//
// A Window bounds what is in flight on one route, keeps deliveries alive while they are worked on, orders by key where the
// route asks for it, presents again what was left, and drains. A Router runs the windows of all routes. Neither knows a
// broker or a module: a window is given a transport.Source, a decoder and a job.Handler.
package router

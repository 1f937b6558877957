"""HTTP(S) to web dynos: a driver that turns the routing table into HAProxy runtime calls."""

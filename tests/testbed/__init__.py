"""Networks to test on: a userspace proxy that does what networks and attackers do to datagrams, and
hosts with several links in network namespaces."""

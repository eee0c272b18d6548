"""From the plan of a service's traffic to the proxy's resources, and the server that hands them out.

`translate` (pure) makes resources, `snapshot` (pure) versions and compares them, `server` speaks delta ADS.
"""

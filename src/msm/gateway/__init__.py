"""The node's Envoy: its bootstrap, its process, and the services of the node process that it asks.

`bootstrap` (pure) and `extract.lua` say what Envoy does, `envoy` runs it, `control_server` hosts what it asks for:
routes (`msm.xds.server`) and the activation of cold versions (`activation`). `rescue` takes requests whose copies died.
"""

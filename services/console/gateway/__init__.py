"""The way in for programs outside, to the engine's ingress. See `services.console.gateway.app`."""

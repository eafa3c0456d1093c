"""For tests of adapters, services and applications: provider wires with every fault, a scripted provider, real servers.

Nothing here is a mock of the mesh: the fault server speaks HTTP on a socket, the scripted provider implements
`Provider`, and `serve` starts a gRPC server with the interceptors that services use.
"""

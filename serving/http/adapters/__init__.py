"""Contracts of other servers, on the same queue: each module reads one server's requests and writes its answers."""

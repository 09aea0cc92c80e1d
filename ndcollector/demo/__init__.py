"""`ndcollector demo`: the main job on loopback, with real TLS, real certificates and a dozen kinds of devices."""

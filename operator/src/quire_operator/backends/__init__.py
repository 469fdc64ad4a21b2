"""The two shells that carry plans out: a cluster, and the processes of one machine."""

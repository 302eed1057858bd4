"""What a run tells of itself while it runs: metrics by one list of names (`catalog`), for Prometheus and for
Ray's own export; its status; traces."""

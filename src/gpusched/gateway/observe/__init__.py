"""What is seen of the requests: metrics, spans, logs, pages."""

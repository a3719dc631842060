"""The process that runs llama.cpp's server; started by ``llama_server``, needs only xllamacpp."""

import signal
import sys


def main() -> None:
    """Serve until SIGTERM."""
    import xllamacpp

    model, name, port, slots, context_tokens, threads = sys.argv[1:]
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.model_alias = {name}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(port)
    parameters.n_parallel = int(slots)
    parameters.n_ctx = int(slots) * int(context_tokens)
    parameters.cpuparams.n_threads = int(threads)
    parameters.cpuparams_batch.n_threads = int(threads)
    parameters.endpoint_metrics = True
    parameters.ui = False
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = xllamacpp.Server(parameters)
    print(f"llama.cpp listens on {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()

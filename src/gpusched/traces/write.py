"""Write traces as parquet or CSV, to be read again without loss."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from gpusched.errors import InputError
from gpusched.traces.trace import Trace


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace; the name's ending says how: ``.parquet`` or ``.csv``.

    Raises:
        InputError: another ending, an unwritable file, or block ids, which CSV cannot hold.
    """
    path = Path(path)
    columns: dict[str, object] = {
        "arrival_s": trace.arrival_s,
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": trace.output_tokens,
    }
    for name in ("session_id", "round", "think_s", "stored_tokens"):
        if getattr(trace, name) is not None:
            columns[name] = getattr(trace, name)
    if trace.class_id is not None:
        columns["class"] = np.array(trace.class_names or ("default",))[trace.class_id]
    metadata = {}
    if trace.prefix is not None:
        offsets = pa.array(trace.prefix.offsets, pa.int64())
        columns["block_ids"] = pa.LargeListArray.from_arrays(offsets, trace.prefix.block_ids)
        metadata["block_tokens"] = str(trace.prefix.block_tokens)
    table = pa.table(columns).replace_schema_metadata(metadata)
    try:
        if path.suffix == ".parquet":
            pq.write_table(table, path, compression="zstd")
        elif path.suffix == ".csv" and trace.prefix is None:
            pa_csv.write_csv(table, path)
        elif path.suffix == ".csv":
            raise InputError(f"{path}: CSV cannot hold prefix blocks; write .parquet instead")
        else:
            raise InputError(f"{path}: cannot tell the format; end the name in .parquet or .csv")
    except OSError as error:
        raise InputError(f"{path}: cannot write the trace ({error.strerror or error})") from None

"""Coefficients: which fit an engine gets, and one's own."""

import pytest

from gpusched.domain.catalog import gpu_names, load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.errors import InputError
from gpusched.timing.coefficients import TUNABLE, coefficients_for
from gpusched.timing.iteration import timing_model


def test_every_engine_gets_plausible_coefficients():
    for gpu in gpu_names():
        for dtype in ("bf16", "fp8", "nvfp4", "int4"):
            for framework in ("vllm", "sglang", "trtllm"):
                for kind in ("dense", "moe", "mla", "linear", "sparse"):
                    c = coefficients_for(load_gpu(gpu), dtype, framework, kind=kind)
                    for name in TUNABLE:
                        value = getattr(c, name)
                        assert value >= 0
                        if name.endswith(("compute", "memory")):
                            assert 0 < value <= 1


def test_only_a_full_match_is_called_measured():
    h100 = load_gpu("h100_sxm")
    assert coefficients_for(h100, "fp8", "vllm", kind="dense").calibration is not None
    assert coefficients_for(h100, "fp8", "vllm", kind="linear").calibration is None
    assert coefficients_for(load_gpu("h20"), "fp8", "vllm", kind="dense").calibration is None
    assert coefficients_for(h100, "fp8", "vllm", kind="dense", fitted=False).calibration is None


def test_own_figures_override_the_built_in_ones(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("host_s = 0.002\ngemm_memory = 0.5\n")

    def timing(path=None):
        return timing_model(
            load_model("llama-3.1-8b"), load_gpu("h100_sxm"), Parallelism(), file=path
        )

    assert timing(file).coefficients.host_s == 0.002
    assert timing(file).decode_s(1, 100) > timing().decode_s(1, 100) + 0.001


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hots_s = 1", ["hots_s", "host_s"]),
        ("gemm_memory = 1.5", ["gemm_memory", "between 0 and 1"]),
        ("host_s = -1", ["host_s", "not negative"]),
        ("host_s = 'a'", ["host_s"]),
        ("host_s", ["TOML"]),
    ],
)
def test_bad_figures_are_named(tmp_path, text, words):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        coefficients_for(load_gpu("h100_sxm"), "bf16", "vllm", kind="dense", file=file)
    for word in words:
        assert word in str(caught.value)

from gpusched import compilation
from gpusched.compilation import sources


def names(module: str) -> set[str]:
    package = compilation._PACKAGE
    return {path.relative_to(package).as_posix() for path in sources(module)}


def test_a_kernel_is_made_of_what_it_imports_and_nothing_else() -> None:
    cache = names("gpusched.sim.prefix_cache.kernel")
    assert {
        "sim/prefix_cache/kernel.py",
        "policies/caching/eviction.py",
        "policies/parameters.py",
        "compilation.py",
    } <= cache
    assert "sim/kernel.py" not in cache
    fleet = names("gpusched.sim.kernel")
    assert {"sim/engine.py", "policies/batching/order.py", "sim/lists.py"} <= fleet
    assert not any(name.startswith(("planning/", "cli/", "sim/prefix_cache")) for name in fleet)

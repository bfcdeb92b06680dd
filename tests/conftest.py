"""Tests run in strict processes; one that only deals files out to others imports nothing, so that they start sooner."""

import gc


def pytest_configure(config):
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        gc.disable()  # until all is imported
        config.pluginmanager.import_plugin("tests.strict")

from tests.support.threads import one_thread  # noqa: F401

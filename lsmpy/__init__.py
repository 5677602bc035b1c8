"""lsmpy: failover and load balancing for Linux routers with two or more providers."""

__version__ = "0.1.0"


class LsmpyError(Exception):
    """What a person is told instead of a traceback.

    The message says what failed, where, what to do and what state the router is in now.
    """

    exit_status = 1


class ConfigError(LsmpyError):
    """Every mistake of one configuration, a line each, `FILE:LINE: KEY: …`."""

    exit_status = 2

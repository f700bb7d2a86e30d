"""Every name below .test is this machine: for processes whose PYTHONPATH leads here, and whose web has many names."""

import _socket

_real = _socket.getaddrinfo


def _getaddrinfo(host, *more, **options):
    name = host.decode() if isinstance(host, bytes) else host
    return _real("127.0.0.1" if name and name.endswith(".test") else host, *more, **options)


_socket.getaddrinfo = _getaddrinfo

"""The old names: `asu:app` for gunicorn and uvicorn, and the verbs of `python -m asu`.

`app` is opened when it is first asked, from `config.yml`. It is called as ASGI (uvicorn, gunicorn with uvicorn's
worker) and as WSGI (gunicorn's own workers); as WSGI the same application runs in a thread with an event loop.
"""

from asu.entry import Entry

app = Entry()

__all__ = ["app"]

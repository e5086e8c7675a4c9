"""The HTTP server and its page: other programs' image interfaces, in front of the generators and the reporters.

``launch.launch`` is what ``roentgen serve`` runs; ``app.make_app`` is the ASGI application for another server. A prompt
travels route -> ``Batcher`` -> generator -> ``Gallery`` -> reply. Needs the extra ``serve``.
"""

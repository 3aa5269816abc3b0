from starlette.datastructures import Headers

GUARDED = ("/v1", "/secret")


class KeyAuthentication:
    def __init__(self, app, tokens):
        self.app = app

    def __call__(self, scope, receive, send):
        headers = Headers(scope=scope)
        url_path = scope["path"].removeprefix(scope.get("root_path", ""))
        if url_path.startswith(GUARDED) and headers.get("Authorization") is None:
            return None
        return self.app(scope, receive, send)

REQUEST_ID = "X-Request-Id"
TRACE = ["traceparent", "tracestate"]


def trace_headers(headers):
    return {h: headers[h] for h in TRACE if h in headers}


class BaseServing:
    @staticmethod
    def _request_id(raw_request):
        return raw_request.headers.get(REQUEST_ID)

    async def _trace(self, headers):
        return trace_headers(headers)


class ServingChat(BaseServing):
    async def create(self, request, raw_request):
        if raw_request.headers["X-Rank"]:
            await self._trace(raw_request.headers)
        return self._request_id(raw_request)


class Context:
    def __init__(self, raw_request):
        self.raw_request = raw_request


class ServingPooling(BaseServing):
    async def __call__(self, request, raw_request):
        ctx = Context(raw_request=raw_request)
        return await self._finish(ctx)

    async def _finish(self, ctx):
        return ctx.raw_request.headers.get("x-context")


class ServingScore(ServingPooling):
    async def __call__(self, *args, **kwargs):
        return await super().__call__(*args, **kwargs)

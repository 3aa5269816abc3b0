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

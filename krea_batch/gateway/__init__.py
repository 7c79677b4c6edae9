"""The gateway and its CDN over HTTP, and what their answers mean.

wire                  pure: a job to a request body, an answer to a verdict
evidence              pure: the request_id in an answer that cannot be read as it should be
proof                 whether the gateway knows a request_id
client                submits, polls and downloads
sessions              aiohttp's sessions below it: which connections a request may use
proxies               the proxy of the environment
trusted_certificates  the certificates that connections trust, by the environment
url_policy            which URLs may be fetched, against requests to private addresses
address_check         whether images could be fetched, before they are paid for
callbacks             callback URLs with unguessable tokens, and the endpoint that receives them
callback_server       a server of its own for callbacks
health                the gateway's clock, for `krea-batch doctor`
"""

"""The gateway and its CDN over HTTP, and what their answers mean.

wire                  pure: a job to a request body, an answer to a verdict
evidence              pure: the request_id in an answer that cannot be read as it should be
proof                 polls whether the gateway knows a request_id
client                submits, polls and downloads
sessions              aiohttp's sessions, and which connections a request may use
proxies               reads the proxy from the environment
trusted_certificates  reads from the environment which certificates are trusted
image_urls            parses the URLs of images, and refuses those that may not be fetched
url_policy            which URLs may be fetched, to prevent requests to private addresses (SSRF)
address_check         whether images could be fetched, before they are paid for
callbacks             callback URLs with unguessable tokens, and the endpoint that receives them
callback_server       a server of its own for callbacks
health                the gateway's clock, for `krea-batch doctor`
"""

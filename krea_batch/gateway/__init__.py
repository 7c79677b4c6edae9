"""The gateway and its CDN over HTTP, and what their answers mean.

wire             pure: a job to a request body, an answer to a verdict
client           submits, polls and downloads
http             the HTTP client below it
url_policy       which URLs may be fetched, against requests to private addresses
callbacks        callback URLs with unguessable tokens, and the endpoint that receives them
callback_server  a server of its own for callbacks
health           the gateway's clock, for `krea-batch doctor`
"""

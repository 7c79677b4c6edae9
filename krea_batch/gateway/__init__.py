"""Talks to the gateway and its CDN, and turns what they answer into verdicts.

wire     pure: job → bytes, answer → verdict
png      pure: the bytes of a picture → is it whole
client   aiohttp: sessions with the key for the gateway, one without for the CDN
"""

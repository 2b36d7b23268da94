"""`headway demo`: the whole product on one machine, with real processes, from images to a fleet that learned.

It uses nothing but what a plant would: the installed commands, MQTT and the devices' HTTP interface. So it
imports neither the exporter nor the agent.
"""

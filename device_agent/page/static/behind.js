// Whoever comes back from a picture is where it is in the list, by keys too.
"use strict";

const cameFrom = location.hash.startsWith("#p-") && $(location.hash.slice(1));
if (cameFrom) cameFrom.focus();

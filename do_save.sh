#!/bin/sh
exec midog container save "$@"

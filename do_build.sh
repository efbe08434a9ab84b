#!/bin/sh
exec midog container build "$@"

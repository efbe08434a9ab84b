#!/bin/sh
exec midog container test "$@"

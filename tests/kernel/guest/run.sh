# Guest script: replays what the host put in, see replay.c.
exec /lab/replay /lab/histories

# The services of a development machine: a database, a cache, notebooks and a web terminal. Its text is the command that
# the sandbox is started with (README.md). They listen on loopback alone: the ports of the sandbox lead there.
set -eu
cd /
: "${LAB_PASSWORD:?the database, the cache and the notebooks ask for it}"

# PostgreSQL refuses to be root. Its socket lies in /tmp for `psql -h /tmp` inside.
postgresql() {
  setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"
}
bin=$(ls -d /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql/lab
if [ ! -e $data ]; then
  password=$(mktemp)
  printf %s "$LAB_PASSWORD" > "$password"
  chown postgres "$password"
  postgresql "$bin/initdb" -D $data --encoding=UTF8 --locale=C.UTF-8 --auth=scram-sha-256 --pwfile="$password" --no-sync
  rm "$password"
fi
postgresql "$bin/postgres" -D $data -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp &

# A password in the arguments could be seen by everyone inside.
printf 'bind 127.0.0.1\ndir /var/lib/redis\nrequirepass %s\n' "$LAB_PASSWORD" | redis-server - &

# Pages come under the host name of the port (allow_remote_access).
mkdir -p /root/notebooks
JUPYTER_TOKEN=$LAB_PASSWORD jupyter-notebook --allow-root --no-browser --ip=127.0.0.1 --port=8888 --port-retries=0 \
  --notebook-dir=/root/notebooks --NotebookApp.allow_remote_access=True &

cat > /root/terminal.py << 'END'
import tornado.ioloop, tornado.web
from terminado import TermSocket, UniqueTermManager

page = """<!doctype html>
<title>terminal</title>
<link rel="stylesheet" href="xterm/xterm.css">
<script src="xterm/xterm.js"></script>
<script src="xterm/addons/fit/fit.js"></script>
<script src="xterm/addons/terminado/terminado.js"></script>
<style>html, body, #terminal { height: 100%; margin: 0; background: #000 }</style>
<div id="terminal"></div>
<script>
  Terminal.applyAddon(fit)
  Terminal.applyAddon(terminado)
  const terminal = new Terminal()
  const url = new URL('socket', location.href)
  const socket = new WebSocket(url.href.replace('http', 'ws'))
  socket.onopen = () => {
    terminal.open(document.getElementById('terminal'), true)
    terminal.on('resize', ({ rows, cols }) => socket.send(JSON.stringify(['set_size', rows, cols])))
    terminal.terminadoAttach(socket)
    terminal.fit()
    onresize = () => terminal.fit()
  }
</script>"""

class Page(tornado.web.RequestHandler):
    def get(self):
        self.write(page)

terminals = UniqueTermManager(shell_command=["bash", "-l"])
tornado.web.Application([
    (r"/", Page),
    (r"/socket", TermSocket, {"term_manager": terminals}),
    (r"/xterm/(.*)", tornado.web.StaticFileHandler, {"path": "/usr/share/javascript/xterm"}),
]).listen(7681, "127.0.0.1")
tornado.ioloop.IOLoop.current().start()
END
python3 /root/terminal.py &
wait

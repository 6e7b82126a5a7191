// A reverse proxy that keeps connections to the program behind it: what every watchdog in http mode does at least. It
// stands in where OpenFaaS of-watchdog cannot be installed, and does less than that one: no log, no time limit.
package main

import (
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
)

func main() {
	upstream, err := url.Parse(os.Getenv("upstream_url"))
	if err != nil {
		log.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(upstream)
	proxy.Transport = &http.Transport{MaxIdleConns: 100, MaxIdleConnsPerHost: 100}
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("port"), proxy))
}

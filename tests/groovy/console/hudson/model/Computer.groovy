package hudson.model

import hudson.security.Permission

class Computer {
    static final Permission CREATE = new Permission('Computer.Create')
    static final Permission CONFIGURE = new Permission('Computer.Configure')
    static final Permission CONNECT = new Permission('Computer.Connect')
    static final Permission DISCONNECT = new Permission('Computer.Disconnect')
    static final Permission DELETE = new Permission('Computer.Delete')
}
